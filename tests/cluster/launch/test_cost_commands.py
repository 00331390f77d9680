"""What `offers` and `spent` print, from an account that answers out of tables."""

import argparse
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cluster.launch.aws import AwsAccount, AwsError, RunningInstance
from cluster.launch.cost_commands import format_costs, format_offer, run_spent
from cluster.launch.prices import InstanceCost
from cluster.settings import SettingsError

TYPE = "g6e.12xlarge"


@dataclass(frozen=True)
class TableAccount(AwsAccount):
    """rows: by operation; one that is absent is refused."""

    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def paginate(self, service: str, operation: str, key: str, **arguments: Any) -> Any:
        if operation not in self.rows:
            raise AwsError(f"{operation}: refused")
        return iter(self.rows[operation])

    def client(self, service: str, region: str | None = None) -> Any:
        return self

    def get_products(self, **arguments: Any) -> dict[str, list[str]]:
        terms = [
            {"o": {"priceDimensions": {"d": {"unit": "Hrs", "pricePerUnit": {"USD": price}}}}}
            for price in (row["price"] for row in self.rows["get_products"])
        ]
        return {"PriceList": [json.dumps({"terms": {"OnDemand": each}}) for each in terms]}


def make_account(**rows: list[dict[str, Any]]) -> TableAccount:
    offering = [{"InstanceType": TYPE, "Location": f"us-east-2{zone}"} for zone in "ca"]
    spot = [
        {
            "InstanceType": TYPE, "AvailabilityZone": f"us-east-2{zone}", "SpotPrice": price,
            "Timestamp": datetime(2026, 1, 1, tzinfo=UTC),
        }
        for zone, price in (("a", "4.2"), ("c", "0.98765"))
    ]  # fmt: skip
    known = {
        "describe_instance_type_offerings": offering,
        "describe_spot_price_history": spot,
        "get_products": [{"price": "1234.5"}],
        **rows,
    }
    return TableAccount("us-east-2", known)


def test_an_offer_is_a_line_with_the_cheapest_spot_price_and_the_zones() -> None:
    quotas = [{"QuotaName": "Running On-Demand G and VT instances", "Value": 192.0}]
    line = format_offer(make_account(list_service_quotas=quotas), TYPE)
    assert line is not None
    assert line.split() == ["us-east-2", "1,234.50", "0.9877", "192", "on", "demand", "a", "c"]


def test_a_role_that_may_not_see_quotas_still_sees_the_prices() -> None:
    line = format_offer(make_account(), TYPE)
    assert line is not None and line.split() == [
        "us-east-2",
        "1,234.50",
        "0.9877",
        "unknown",
        "a",
        "c",
    ]


def test_what_is_not_listed_is_a_question_mark() -> None:
    account = make_account(describe_spot_price_history=[], get_products=[], list_service_quotas=[])
    line = format_offer(account, TYPE)
    assert line is not None and line.split() == ["us-east-2", "?", "?", "?", "a", "c"]


def test_a_region_without_the_type_has_no_line() -> None:
    assert format_offer(make_account(describe_instance_type_offerings=[]), TYPE) is None


def make_cost(hours: float, price: float | None, is_spot: bool) -> InstanceCost:
    launched = datetime(2026, 1, 1, tzinfo=UTC)
    return InstanceCost(RunningInstance("i-1", TYPE, "gpu", "a", is_spot, launched), hours, price)


def test_costs_are_added_up_and_what_is_not_known_is_counted() -> None:
    costs = [make_cost(2.5, 800.0, False), make_cost(4, 0.25, True), make_cost(3, None, False)]
    fixed, spot, unknown, total = format_costs("lab", costs)
    words = "i-1 gpu g6e.12xlarge on demand 2.50 h at 800.00 $/h: 2,000.00 $"
    assert " ".join(fixed.split()) == words
    assert " spot " in spot and spot.endswith("4.00 h at 0.2500 $/h: 1.00 $")
    assert unknown.endswith("3.00 h at ? $/h: ? $")
    assert total.startswith(
        "lab: 3 machine(s) run, 1 at a price that is not known: $2,001.00 so far, $800.25 an hour;"
    )


def test_where_all_prices_are_known_none_is_called_unknown() -> None:
    assert "lab: 0 machine(s) run: $0.00 so far" in "".join(format_costs("lab", []))


@pytest.mark.parametrize("provider", ["{type: local, region: x}", "{type: aws}", "null"])
def test_only_a_cluster_of_aws_with_a_region_has_costs(tmp_path: Path, provider: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"{{cluster_name: c, provider: {provider}}}\n")
    with pytest.raises(SettingsError, match=r"provider\.type is not aws, and nothing is rented"):
        run_spent(argparse.Namespace(file=str(path)))
