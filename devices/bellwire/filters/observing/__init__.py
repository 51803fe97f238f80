"""What filters that look have in common: records of events, where they are kept, and which."""
