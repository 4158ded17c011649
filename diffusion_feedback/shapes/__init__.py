"""The Shapes world: scenes with known attributes, their exact verifier, and what is shown with them."""
