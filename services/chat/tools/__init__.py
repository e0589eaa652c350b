"""What the service does for a customer, with the customer's own rights and no others."""
