package peer;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.File;
import java.nio.ByteBuffer;
import java.security.GeneralSecurityException;
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

/**
 * The risk job as a Kafka Streams application.
 *
 * <p>Without terminals: payments, one processor with the accounts' store, decisions. With terminals, which are
 * not the payments' key: payments, a processor with the accounts' store, a topic keyed by terminal that carries
 * the payment and its features so far, a processor with the terminals' store, decisions.
 */
public final class Peer {
    private static final String ACCOUNTS = "accounts";
    private static final String TERMINALS = "terminals";
    private static final String TRACEPARENT = "traceparent";

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
        Runtime.getRuntime().addShutdownHook(new Thread(() -> streams.close(Duration.ofSeconds(10))));
        streams.start();
        ended.await();
        System.exit(1);
    }

    private static Topology topology(JsonNode config) {
        Topology topology = new Topology();
        ByteArrayDeserializer bytes = new ByteArrayDeserializer();
        topology.addSource("payments", bytes, bytes, config.get("source").asText());
        if (config.get("terminals").asBoolean()) {
            String between = config.get("by_terminal").asText();
            ByteArraySerializer same = new ByteArraySerializer();
            topology.addProcessor("account", () -> new ByAccount(config), "payments")
                    .addStateStore(store(config, ACCOUNTS), "account")
                    .addSink("to terminals", between, same, same, "account")
                    .addSource("by terminal", bytes, bytes, between)
                    .addProcessor("risk", () -> new ByTerminal(config), "by terminal")
                    .addStateStore(store(config, TERMINALS), "risk");
        } else {
            topology.addProcessor("risk", () -> new Alone(config), "payments")
                    .addStateStore(store(config, ACCOUNTS), "risk");
        }
        addSink(topology, config);
        return topology;
    }

    // The one method of StreamPartitioner that must be written is the one that will be removed.
    @SuppressWarnings("removal")
    private static void addSink(Topology topology, JsonNode config) {
        List<Optional<Set<Integer>>> partitions = IntStream.range(0, config.get("partitions").asInt())
                .mapToObj(each -> Optional.of(Set.of(each)))
                .toList();
        Serializer<Key> keys = (topic, key) -> key.pseudonym();
        topology.addSink(
                "decisions",
                config.get("target").asText(),
                keys,
                new ByteArraySerializer(),
                (topic, key, value, count) -> partitions.get(key.partition()),
                "risk");
    }

    private static StoreBuilder<KeyValueStore<byte[], byte[]>> store(JsonNode config, String name) {
        KeyValueBytesStoreSupplier supplier = config.get("store").asText().equals("rocksdb")
                ? Stores.persistentKeyValueStore(name)
                : Stores.inMemoryKeyValueStore(name);
        StoreBuilder<KeyValueStore<byte[], byte[]>> store = Stores.keyValueStoreBuilder(
                        supplier, Serdes.ByteArray(), Serdes.ByteArray())
                .withLoggingEnabled(Map.of());
        return config.get("cache").asBoolean() ? store.withCachingEnabled() : store.withCachingDisabled();
    }

    /** What the processors share: a decider, a store, and how a record fails. */
    private abstract static class Deciding<K> implements Processor<byte[], byte[], K, byte[]>, Decider.Rows {
        final JsonNode config;
        Decider decider;
        ProcessorContext<K, byte[]> context;
        private final String storeName;
        private KeyValueStore<byte[], byte[]> rows;

        Deciding(JsonNode config, String storeName) {
            this.config = config;
            this.storeName = storeName;
        }

        @Override
        public void init(ProcessorContext<K, byte[]> context) {
            this.context = context;
            this.rows = context.getStateStore(storeName);
            try {
                decider = new Decider(config);
            } catch (GeneralSecurityException error) {
                throw new IllegalStateException(error);
            }
        }

        @Override
        public void process(Record<byte[], byte[]> record) {
            RecordMetadata at = context.recordMetadata().orElseThrow();
            try {
                take(record, at);
            } catch (Exception error) {
                throw new IllegalStateException("offset " + at.offset() + " of partition " + at.partition(), error);
            }
        }

        abstract void take(Record<byte[], byte[]> record, RecordMetadata at) throws Exception;

        final void accept(byte[] payment) throws Exception {
            if (!decider.accept(payment)) {
                throw new IllegalArgumentException("a payment that cannot be decided");
            }
        }

        @Override
        public byte[] get(byte[] id) {
            return rows.get(id);
        }

        @Override
        public void put(byte[] id, byte[] row) {
            rows.put(id, row);
        }
    }

    private static Record<Key, byte[]> decision(Decider decider, int partition, Header trace) {
        RecordHeaders headers = new RecordHeaders();
        headers.add("weir.envelope", decider.header);
        if (trace != null) {
            headers.add(trace);
        }
        return new Record<>(new Key(decider.key, partition), decider.value, System.currentTimeMillis(), headers);
    }

    private static final class Alone extends Deciding<Key> {
        Alone(JsonNode config) {
            super(config, ACCOUNTS);
        }

        @Override
        void take(Record<byte[], byte[]> record, RecordMetadata at) throws Exception {
            Header trace = record.headers().lastHeader(TRACEPARENT);
            accept(record.value());
            decider.observeAccount(this);
            decider.finish(record.timestamp(), at.partition(), at.offset(), trace == null ? null : trace.value());
            context.forward(decision(decider, at.partition(), trace));
        }
    }

    /** Of the topic between: origin (partition, offset), the features so far, then the payment as it came. */
    private static final class ByAccount extends Deciding<byte[]> {
        static final int KNOWN = 23;
        static final int PREFIX_BYTES = Integer.BYTES + Long.BYTES + KNOWN * Float.BYTES;

        ByAccount(JsonNode config) {
            super(config, ACCOUNTS);
        }

        @Override
        void take(Record<byte[], byte[]> record, RecordMetadata at) throws Exception {
            accept(record.value());
            decider.observeAccount(this);
            ByteBuffer value = ByteBuffer.allocate(PREFIX_BYTES + record.value().length);
            value.putInt(at.partition()).putLong(at.offset());
            for (int feature = 0; feature < KNOWN; feature++) {
                value.putFloat(decider.features[feature]);
            }
            value.put(record.value());
            // The timestamp stays the payment's: the waiting is counted from there.
            context.forward(new Record<>(decider.terminal(), value.array(), record.timestamp(), record.headers()));
        }
    }

    private static final class ByTerminal extends Deciding<Key> {
        ByTerminal(JsonNode config) {
            super(config, TERMINALS);
        }

        @Override
        void take(Record<byte[], byte[]> record, RecordMetadata at) throws Exception {
            Header trace = record.headers().lastHeader(TRACEPARENT);
            ByteBuffer value = ByteBuffer.wrap(record.value());
            int partition = value.getInt();
            long offset = value.getLong();
            for (int feature = 0; feature < ByAccount.KNOWN; feature++) {
                decider.features[feature] = value.getFloat();
            }
            byte[] payment = new byte[value.remaining()];
            value.get(payment);
            accept(payment);
            decider.observeTerminal(this);
            decider.finish(record.timestamp(), partition, offset, trace == null ? null : trace.value());
            context.forward(decision(decider, partition, trace));
        }
    }
}
