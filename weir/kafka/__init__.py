"""Kafka, as its protocol has it: whole record batches and transactions, over aiokafka's connections."""
