"""What is true in the demo's world: plain tables, written and reviewed by hand."""
