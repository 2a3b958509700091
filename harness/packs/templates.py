"""The room `prompts/templates/`: how an injection meets a sentence. Text only; ids are the provider's vocabulary's business."""

from __future__ import annotations

from collections.abc import Sequence

from harness import paths
from harness.config import Strict, read_toml


class Template(Strict):
    """`before` + injection + `after` + sentence; a clean prompt is the sentence alone."""

    description: str
    before: str
    after: str

    def render(self, injection: Sequence[str], sentence: str) -> str:
        """The text of an injected prompt."""
        return self.before + "".join(injection) + self.after + sentence


def find_template(name: str) -> Template:
    """The template called `name`; raises UnknownNameError."""
    return read_toml(paths.find("prompts/templates", "template", name).path, Template)
