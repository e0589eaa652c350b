"""Federated training: banks that make one risk model together, and keep their payments to themselves."""
