"""What is written in a class body, and the plan that is made of it."""
