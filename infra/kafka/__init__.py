"""What the brokers are told: logging of the embedded one, rights on a bank's own."""
