"""The workshop of the embedded foundation kit: not part of the package; see README.md."""
