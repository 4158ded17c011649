"""How a run is put together: one session for each kind of model and objective."""
