"""The measurements of `bellwire demo`: one doorbell, rung in every possible way."""
