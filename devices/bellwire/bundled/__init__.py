"""The devices that come with Bellwire: one file or one folder for each."""
