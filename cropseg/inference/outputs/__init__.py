"""What a map consists of, and what is made of finished maps."""
