"""What vpnd has of its host: the privileged helper and the service manager."""
