"""What is on disk: models, their headers and names."""
