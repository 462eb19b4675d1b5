"""What may one setting be, and how is it said in the environment and on the command line?"""

from dataclasses import dataclass
from typing import Any

ENVIRONMENT_PREFIX = "DRAGOMAN_"
_TRUE, _FALSE = ("1", "true", "yes", "on"), ("0", "false", "no", "off")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One setting, as the command line and the documentation show it."""

    section: str
    """Table of the TOML file."""
    name: str
    """Key in that table."""
    kind: type
    """str, int, float or bool."""
    default: str | int | float | bool
    """Value when nothing is said."""
    help: str
    """The field's docstring."""
    least: float | None
    """Smallest value allowed."""
    most: float | None
    """Largest value allowed."""
    choices: tuple[str, ...]
    """The values allowed, where they are few."""
    or_zero: bool
    """Whether 0 is allowed too, below `least`."""

    @property
    def flag(self) -> str:
        """Its name on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return ENVIRONMENT_PREFIX + self.name.upper()

    def problem(self, value: Any, where: str) -> str | None:
        """Why `value` is not allowed, or None."""
        named = f"`{self.name}` ({where})"
        allowed = (float, int) if self.kind is float else (self.kind,)
        if type(value) not in allowed:  # isinstance would take True for a whole number
            kinds = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}
            return f"{named} must be {kinds[self.kind]}, but is {value!r}."
        if self.choices and value not in self.choices:
            return f"{named} must be one of {', '.join(self.choices)}, but is {value!r}."
        if self.kind in (int, float) and self._number_problem(value):
            return f"{named} must be {self._number_problem(value)}, but is {value}."
        if self.name.endswith("address") and (value or self.name == "address"):
            return _address_problem(value, named)
        return None

    def _number_problem(self, value: float) -> str | None:
        """What a number must be and is not, or None."""
        if self.or_zero and value == 0:
            return None
        if self.least is not None and not value >= self.least:  # not >=: NaN is refused too
            return f"{'0 or ' if self.or_zero else ''}at least {self.least}"
        if self.most is not None and value > self.most:
            return f"at most {self.most}"
        return "finite" if value == float("inf") else None

    def parse(self, text: str) -> Any:
        """The value that a text of the environment or the command line means; the text itself when it means none, which
        `problem` then reports."""
        try:
            if self.kind is bool:
                lowered = text.strip().lower()
                return True if lowered in _TRUE else False if lowered in _FALSE else text
            return self.kind(text)
        except ValueError:
            return text


def _address_problem(value: str, named: str) -> str | None:
    host, _, port = value.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        return f"{named} must be host:port, but is {value!r}."
    return None
