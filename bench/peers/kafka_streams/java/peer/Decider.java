package peer;

import com.fasterxml.jackson.databind.JsonNode;
import java.io.IOException;
import java.security.GeneralSecurityException;
import java.util.Arrays;
import java.util.HexFormat;
import org.apache.avro.Schema;

/** A payment's whole way, without Kafka: decode, validate, window, score, decide, explain, encode, seal. */
final class Decider {
    /** Where the rows of accounts, or of terminals, are kept. */
    interface Rows {
        byte[] get(byte[] id);

        void put(byte[] id, byte[] row);
    }

    /** Of the payment in hand. Those of known frauds stay 0: the peer has no labels. */
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
    private final TerminalWindow terminals;
    private final int ringDays;
    private long newestDay; // of all payments so far
    private long amount; // 1/10000 of the home currency
    private long nowMs;
    private long begunNs;
    private long decodedNs;

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
        int delayDays = config.get("label_delay_days").asInt();
        terminals = new TerminalWindow(delayDays);
        ringDays = delayDays + AccountWindow.DAYS + 1;
    }

    private static byte[] bytes(JsonNode config, String name) {
        return HexFormat.of().parseHex(config.get(name).asText());
    }

    /** Read the next payment; false for one that cannot be decided. */
    boolean accept(byte[] framed) throws IOException {
        begunNs = System.nanoTime();
        nowMs = System.currentTimeMillis();
        if (!payment.read(framed)) {
            return false;
        }
        amount = policy.amountHome(payment, nowMs);
        decodedNs = System.nanoTime();
        return amount >= 0;
    }

    /** Score, decide, explain, encode and seal the payment, whose features are all there. */
    void finish(long timestampMs, int partition, long offset, byte[] traceparent)
            throws GeneralSecurityException, CloneNotSupportedException {
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
    }

    /** The terminal of the payment that was accepted last. */
    byte[] terminal() {
        return Arrays.copyOf(payment.terminalId.getBytes(), payment.terminalId.getByteLength());
    }

    /** Features 23 to 34 from what the terminal saw before; then the payment has entered. */
    void observeTerminal(Rows rows) {
        long hour = payment.eventMs / AccountWindow.HOUR_MS;
        byte[] terminal = terminal();
        byte[] row = rows.get(terminal);
        if (row == null) {
            row = terminals.create(hour);
        } else {
            terminals.roll(row, hour);
        }
        terminals.features(row, features);
        terminals.enter(row, payment.eventMs);
        rows.put(terminal, row);
    }

    /** Features 0 to 22 from the payment and what its account did before; then the payment has entered. */
    void observeAccount(Rows rows) {
        double x = amount / 10_000.0;
        long eventMs = payment.eventMs;
        long hour = eventMs / AccountWindow.HOUR_MS;
        byte[] account = Arrays.copyOf(payment.accountId.getBytes(), payment.accountId.getByteLength());
        byte[] row = rows.get(account);
        newestDay = Math.max(newestDay, hour / AccountWindow.HOURS);
        if (row == null || AccountWindow.isForgotten(row, newestDay, ringDays)) {
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
