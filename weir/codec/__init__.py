"""Avro, Confluent framing and schema ids."""
