"""What a user could pick instead of jaxstab, each in its best form; our own code."""
