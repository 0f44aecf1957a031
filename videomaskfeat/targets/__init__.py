"""What is predicted at the hidden positions."""
