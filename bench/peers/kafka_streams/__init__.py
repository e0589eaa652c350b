"""The risk job as a Kafka Streams application in Java: what a bank would build without Weir."""
