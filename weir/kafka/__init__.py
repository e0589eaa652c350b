"""Weir's own producers on Kafka's wire protocol, over aiokafka's connections.

They build a partition's records as whole batches in compiled loops, and speak transaction version 2
(KIP-890). Of the extra `services` (numpy, numba).
"""
