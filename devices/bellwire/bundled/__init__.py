"""The devices that come with Bellwire."""
