"""Questions of the view: what to poke, which interrupt to raise, and whether to reset."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Checkbox, Input, Label


class Ask(ModalScreen[tuple[str, bool] | None]):
    """Asks for a line, and with ``choice`` for yes or no beside it. Gives both, or None after Escape."""

    BINDINGS: ClassVar[list[BindingType]] = [("escape", "dismiss(None)", "cancel")]

    def __init__(self, question: str, example: str, choice: str = "") -> None:
        super().__init__()
        self._question = question
        self._example = example
        self._choice = choice

    def compose(self) -> ComposeResult:
        """The question, the line, and the choice."""
        with Vertical(id="ask"):
            yield Label(self._question)
            yield Input(placeholder=self._example)
            if self._choice:
                yield Checkbox(self._choice)

    def on_mount(self) -> None:
        """The keyboard goes to the line."""
        self.query_one(Input).focus()

    def on_input_submitted(self, entered: Input.Submitted) -> None:
        """Enter ends the question."""
        self.dismiss((entered.value, any(box.value for box in self.query(Checkbox))))
