"""The one exception a bad recipe raises."""

from collections.abc import Sequence


class RecipeError(ValueError):
    """Every problem found in one recipe, a line each: where, what was given, what is allowed, what to do."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))
