"""Settings: `schema` says what they are (pydantic, no torch), `load` composes recipes and overrides (Hydra)."""
