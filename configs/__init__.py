"""The shipped recipes (YAML); `synthgen configs` lists them."""
