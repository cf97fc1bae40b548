"""What stands between an answer and Kafka: the journal, the live counters, the flush, the counter record, the counter logs."""
