"""Results in the forms of other tools: how they name and scale weights, and how each form is read back."""
