"""The filters that come with Bellwire, one file each. Their names are found by themselves."""
