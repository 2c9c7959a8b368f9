"""What is reused of another site, and what is trained."""
