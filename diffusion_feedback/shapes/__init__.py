"""The Shapes world: scenes with known attributes, their renderer and exact verifier, and what is shown with them."""
