"""A problem in a cluster file as a line of text."""

from cluster.validation.problem import ConfigProblem, as_list, as_mapping, suggest_name


def test_a_problem_is_its_field_its_value_and_what_is_wrong() -> None:
    assert str(ConfigProblem("a.b", "must be text", 7)) == "a.b = 7: must be text"
    assert str(ConfigProblem("a.b", "must be text", None)) == "a.b = None: must be text"


def test_a_problem_without_a_value_shows_none() -> None:
    assert str(ConfigProblem("a.b", "missing; give one")) == "a.b: missing; give one"


def test_what_has_another_shape_is_taken_for_empty() -> None:
    assert as_mapping({"a": 1}) == {"a": 1} and as_mapping([1]) == {} and as_mapping(None) == {}
    assert as_list([1]) == [1] and as_list({"a": 1}) == [] and as_list("text") == []


def test_a_near_name_is_suggested_and_otherwise_all_are_listed() -> None:
    names = ["worker", "head"]
    assert "did you mean worker?" in suggest_name("woker", names)
    assert suggest_name("zzz", names) == "; there are head, worker"
