"""How a model is used, as code and commands of its README.md."""

from trainers.models.card import ModelCard

PIPELINES = {
    "classification": "text-classification",
    "multi-label": "text-classification",
    "regression": "text-classification",
    "masked-lm": "fill-mask",
    "embedding": "feature-extraction",
}
GRAPHS = {  # of an export, how it is computed
    "onnx": """\
from onnxruntime import InferenceSession
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")
inputs = tokenizer(["A text."], truncation=True, padding=True, return_tensors="np")
session = InferenceSession("DIRECTORY/model.onnx")
names = [each.name for each in session.get_inputs()]
outputs = session.run(None, {name: inputs[name] for name in names})[0]""",
    "openvino": """\
import openvino
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("DIRECTORY")
inputs = tokenizer(["A text."], truncation=True, padding=True, return_tensors="np")
exact = {"INFERENCE_PRECISION_HINT": "f32"}  # else some processors compute in bf16
model = openvino.compile_model("DIRECTORY/openvino_model.xml", "CPU", exact)
outputs = model({name: inputs[name] for name in ("input_ids", "attention_mask")})[0]""",
}


def is_linear(card: ModelCard) -> bool:
    """Return whether a bundle holds a linear model, which no other library loads."""
    return bool(card.recipe["model"]["name"] == "linear")


def describe_usage(card: ModelCard, form: str) -> str:
    """Return the section of a README. form: "bundle", or that of an export."""
    parts = ["## Use"]
    command = {
        "masked-lm": "bertha serve DIRECTORY",
        "embedding": "bertha predict DIRECTORY rows.csv --out vectors.parquet",
    }.get(card.task, 'bertha predict DIRECTORY "A text."')
    if form == "bundle":
        parts.append(f"```sh\n{command}\n```")
    if not is_linear(card):
        code = GRAPHS.get(form) or f"from transformers import pipeline\n\n{_pipeline(card)}"
        parts.append(f"```python\n{code}\n```")
    if form in GRAPHS and card.task in ("classification", "multi-label"):
        function = "softmax" if card.task == "classification" else "sigmoid"
        parts.append(
            f"The outputs are logits in the order of the labels; their {function} gives the "
            "probabilities."
        )
    if card.pooling is not None and form not in GRAPHS:
        pooled = "mean" if card.pooling == "mean" else "first"
        parts.append(f"The {pooled} of the vectors, scaled to length 1, is the embedding.")
    return "\n\n".join(parts)


def _pipeline(card: ModelCard) -> str:
    options = {
        "multi-label": ", top_k=None",
        "regression": ', function_to_apply="none"',
    }.get(card.task, "")
    text = '"A text.", truncation=True'
    if card.task == "masked-lm":
        text = 'f"A {answer.tokenizer.mask_token} text."'
    start = f'answer = pipeline("{PIPELINES[card.task]}", "DIRECTORY"{options})'
    return f"{start}\noutputs = answer({text})"
