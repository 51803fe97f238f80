"""What `bellwire demo` measures: one doorbell, rung in every way there is."""
