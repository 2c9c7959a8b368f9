"""What is known of a site before it is trained on, and what stands in the way."""
