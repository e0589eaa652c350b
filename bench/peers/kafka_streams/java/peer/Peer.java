package peer;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.File;
import java.time.Duration;
import java.util.List;
import java.util.Map;
import java.util.Optional;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.CountDownLatch;
import java.util.stream.IntStream;
import org.apache.kafka.common.header.Header;
import org.apache.kafka.common.header.internals.RecordHeaders;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;
import org.apache.kafka.common.serialization.ByteArraySerializer;
import org.apache.kafka.common.serialization.Serdes;
import org.apache.kafka.common.serialization.Serializer;
import org.apache.kafka.streams.KafkaStreams;
import org.apache.kafka.streams.Topology;
import org.apache.kafka.streams.errors.StreamsUncaughtExceptionHandler.StreamThreadExceptionResponse;
import org.apache.kafka.streams.processor.api.Processor;
import org.apache.kafka.streams.processor.api.ProcessorContext;
import org.apache.kafka.streams.processor.api.Record;
import org.apache.kafka.streams.processor.api.RecordMetadata;
import org.apache.kafka.streams.state.KeyValueBytesStoreSupplier;
import org.apache.kafka.streams.state.KeyValueStore;
import org.apache.kafka.streams.state.StoreBuilder;
import org.apache.kafka.streams.state.Stores;

/** The risk job as a Kafka Streams application: one source, one processor with one store, one sink. */
public final class Peer {
    private static final String STORE = "accounts";

    private Peer() {}

    /** A decision's key with its payment's partition: decisions go to the partition that the payment came from. */
    private record Key(byte[] pseudonym, int partition) {}

    /** CONFIG. */
    public static void main(String[] arguments) throws Exception {
        JsonNode config = new ObjectMapper().readTree(new File(arguments[0]));
        Properties properties = new Properties();
        config.get("streams").properties().forEach(each -> properties.put(each.getKey(), each.getValue().asText()));
        KafkaStreams streams = new KafkaStreams(topology(config), properties);
        CountDownLatch ended = new CountDownLatch(1);
        streams.setUncaughtExceptionHandler(error -> {
            error.printStackTrace();
            ended.countDown();
            return StreamThreadExceptionResponse.SHUTDOWN_CLIENT;
        });
        Thread closing = new Thread(() -> streams.close(Duration.ofSeconds(10)));
        Runtime.getRuntime().addShutdownHook(closing);
        streams.start();
        ended.await();
        System.exit(1);
    }

    // The one method of StreamPartitioner that must be written is the one that will be removed.
    @SuppressWarnings("removal")
    private static Topology topology(JsonNode config) {
        KeyValueBytesStoreSupplier supplier = config.get("store").asText().equals("rocksdb")
                ? Stores.persistentKeyValueStore(STORE)
                : Stores.inMemoryKeyValueStore(STORE);
        StoreBuilder<KeyValueStore<byte[], byte[]>> store =
                Stores.keyValueStoreBuilder(supplier, Serdes.ByteArray(), Serdes.ByteArray()).withLoggingEnabled(Map.of());
        store = config.get("cache").asBoolean() ? store.withCachingEnabled() : store.withCachingDisabled();
        Serializer<Key> keys = (topic, key) -> key.pseudonym();
        List<Optional<Set<Integer>>> partitions = IntStream.range(0, config.get("partitions").asInt())
                .mapToObj(each -> Optional.of(Set.of(each)))
                .toList();
        return new Topology()
                .addSource("payments", new ByteArrayDeserializer(), new ByteArrayDeserializer(), config.get("source").asText())
                .addProcessor("risk", () -> new Risk(config), "payments")
                .addStateStore(store, "risk")
                .addSink(
                        "decisions",
                        config.get("target").asText(),
                        keys,
                        new ByteArraySerializer(),
                        (topic, key, value, count) -> partitions.get(key.partition()),
                        "risk");
    }

    private static final class Risk implements Processor<byte[], byte[], Key, byte[]>, Decider.Rows {
        private final JsonNode config;
        private Decider decider;
        private ProcessorContext<Key, byte[]> context;
        private KeyValueStore<byte[], byte[]> rows;

        Risk(JsonNode config) {
            this.config = config;
        }

        @Override
        public void init(ProcessorContext<Key, byte[]> context) {
            this.context = context;
            this.rows = context.getStateStore(STORE);
            try {
                decider = new Decider(config);
            } catch (java.security.GeneralSecurityException error) {
                throw new IllegalStateException(error);
            }
        }

        @Override
        public void process(Record<byte[], byte[]> record) {
            RecordMetadata at = context.recordMetadata().orElseThrow();
            Header trace = record.headers().lastHeader("traceparent");
            byte[] traceparent = trace == null ? null : trace.value();
            try {
                if (!decider.decide(record.value(), record.timestamp(), at.partition(), at.offset(), traceparent, this)) {
                    throw new IllegalArgumentException("a payment that cannot be decided");
                }
            } catch (Exception error) {
                throw new IllegalStateException("offset " + at.offset() + " of partition " + at.partition(), error);
            }
            RecordHeaders headers = new RecordHeaders();
            headers.add("weir.envelope", decider.header);
            if (traceparent != null) {
                headers.add(trace);
            }
            context.forward(new Record<>(
                    new Key(decider.key, at.partition()), decider.value, System.currentTimeMillis(), headers));
        }

        @Override
        public byte[] get(byte[] account) {
            return rows.get(account);
        }

        @Override
        public void put(byte[] account, byte[] row) {
            rows.put(account, row);
        }
    }
}
