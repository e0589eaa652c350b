package peer;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.security.GeneralSecurityException;
import java.util.HexFormat;
import org.apache.avro.Schema;

/** A payment's whole way, without Kafka: decode, validate, window, score, decide, explain, encode, seal. */
final class Decider {
    /** Where the accounts' rows are kept. */
    interface Rows {
        byte[] get(byte[] account);

        void put(byte[] account, byte[] row);
    }

    /** Features 20 to 27 stay 0: the peer has neither labels nor terminal windows. */
    final float[] features = new float[Model.FEATURES];

    final Model model;

    /** What the last decision goes out with. */
    byte[] key;

    byte[] value;
    byte[] header;

    private final Payment payment;
    private final Policy policy;
    private final DecisionWriter writer;
    private final Sealer sealer;
    private final Ids ids;
    private final long utcOffsetMs;
    private final int nightStart;
    private final int nightEnd;

    Decider(JsonNode config) throws GeneralSecurityException {
        model = new Model(config.get("model"));
        policy = new Policy(config.get("policy"), config.get("rates"));
        payment = new Payment(
                new Schema.Parser().parse(config.get("transaction_schema").asText()),
                config.get("transaction_schema_id").asInt());
        int schemaId = config.get("decision_schema_id").asInt();
        writer = new DecisionWriter(
                new Schema.Parser().parse(config.get("decision_schema").asText()),
                schemaId,
                config.get("tenant").asText(),
                config.get("kind").asText(),
                model,
                policy,
                config.get("source").asText(),
                config.get("feature_spec").asText(),
                config.get("reasons"));
        sealer = new Sealer(config.get("target").asText(), bytes(config, "key"), config.get("key_id").asInt(), schemaId);
        ids = new Ids(
                bytes(config, "namespace"), config.get("tenant").asText(), config.get("kind").asText(),
                bytes(config, "pseudonym_key"));
        utcOffsetMs = config.get("utc_offset_ms").asLong();
        nightStart = config.get("night_start_hour").asInt();
        nightEnd = config.get("night_end_hour").asInt();
    }

    private static byte[] bytes(JsonNode config, String name) {
        return HexFormat.of().parseHex(config.get(name).asText());
    }

    /** False for a record that cannot be decided; then nothing has entered the windows. */
    boolean decide(
            byte[] framed, long timestampMs, int partition, long offset, byte[] traceparent, Rows rows)
            throws IOException, GeneralSecurityException, CloneNotSupportedException {
        long begunNs = System.nanoTime();
        long nowMs = System.currentTimeMillis();
        if (!payment.read(framed)) {
            return false;
        }
        long amount = policy.amountHome(payment, nowMs);
        if (amount < 0) {
            return false;
        }
        long decodedNs = System.nanoTime();
        double x = amount / 10_000.0;
        observe(x, rows);
        long observedNs = System.nanoTime();
        model.score(features);
        long scoredNs = System.nanoTime();
        int outcome = policy.outcome(model.probability, features, payment, amount);
        writer.strongest(model.contributions, outcome);
        long[] timings = writer.timings;
        timings[0] = Math.max(0, nowMs - timestampMs) * 1000;
        timings[1] = (decodedNs - begunNs) / 1000;
        timings[2] = (observedNs - decodedNs) / 1000;
        timings[3] = (scoredNs - observedNs) / 1000;
        timings[4] = (System.nanoTime() - scoredNs) / 1000;
        byte[] id = ids.decisionId(payment.eventId);
        writer.write(id, payment, outcome, model, policy.fired, nowMs, partition, offset, traceparent);
        value = sealer.seal(writer.buffer, writer.length, id);
        header = sealer.header(id);
        key = ids.pseudonym(payment.accountId);
        return true;
    }

    private void observe(double x, Rows rows) {
        long eventMs = payment.eventMs;
        long hour = eventMs / AccountWindow.HOUR_MS;
        byte[] account = java.util.Arrays.copyOf(payment.accountId.getBytes(), payment.accountId.getByteLength());
        byte[] row = rows.get(account);
        if (row == null) {
            row = AccountWindow.create(hour);
        } else {
            AccountWindow.roll(row, hour);
        }
        float[] out = features;
        out[0] = (float) x;
        out[1] = (float) Math.log1p(Math.max(x, 0.0));
        long localHour = (eventMs + utcOffsetMs) / AccountWindow.HOUR_MS;
        int hourOfDay = (int) (localHour % AccountWindow.HOURS);
        out[2] = hourOfDay;
        // 1 January 1970 was a Thursday: day 3 with Monday as 0.
        out[3] = (localHour / AccountWindow.HOURS + 3) % 7 >= 5 ? 1.0f : 0.0f;
        boolean night = nightStart <= nightEnd
                ? nightStart <= hourOfDay && hourOfDay < nightEnd
                : hourOfDay >= nightStart || hourOfDay < nightEnd;
        out[4] = night ? 1.0f : 0.0f;
        for (int code = 0; code < 4; code++) {
            out[5 + code] = payment.channel == code ? 1.0f : 0.0f;
        }
        AccountWindow.features(row, x, eventMs, out);
        AccountWindow.enter(row, x, eventMs);
        rows.put(account, row);
    }
}
