"""The embedded foundation kit: build, train and check it."""
