"""Model families: the only package that imports diffusers."""
