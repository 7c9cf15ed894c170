"""What the clock makes happen."""
