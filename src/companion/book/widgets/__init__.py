"""Elements of a page that a reader can move, as self-contained HTML."""
