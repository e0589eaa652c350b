package peer;

import com.fasterxml.jackson.databind.JsonNode;
import java.nio.charset.StandardCharsets;
import java.util.Arrays;
import java.util.List;
import org.apache.avro.Schema;
import org.apache.avro.io.BinaryData;
import org.apache.avro.util.Utf8;

/**
 * Writes decisions as framed records of schemas/decision.avsc with Avro's own primitives; what is the same for
 * all of them, and each reason's texts, is encoded once.
 */
final class DecisionWriter {
    static final int REASONS = 4;
    private static final String LAYOUT =
            "decision_id tenant event_id account_id kind outcome score probability logit base_logit reasons rules amount "
                    + "currency terminal_id event_time decided_time model_name model_version model_sha256 policy_version "
                    + "policy_sha256 feature_ref timings degraded degraded_reason traceparent";

    private final byte[] head;
    private final byte[] tenant;
    private final byte[] kind;
    private final byte[] baseLogit;
    private final byte[] names;
    private final byte[] spec;
    private final byte[][] reasonStart;
    private final byte[][] reasonEnd;
    private final byte[][] rules;
    private final byte[] uuid = new byte[36];

    /** The last record; the first {@link #length} bytes are it. */
    byte[] buffer = new byte[8192];

    int length;

    /** The up to four reasons of the payment, -1 for none, and what each adds to the logit. */
    final int[] reason = new int[REASONS];

    final float[] contribution = new float[REASONS];

    /** Microseconds: waiting, decoding, features, model, decision. */
    final long[] timings = new long[5];

    DecisionWriter(
            Schema schema, int schemaId, String tenant, String kind, Model model, Policy policy, String topic,
            String featureSpec, JsonNode reasons) {
        String found = String.join(" ", schema.getFields().stream().map(Schema.Field::name).toList());
        if (!LAYOUT.equals(found)) {
            throw new IllegalArgumentException("the decision schema has other fields: " + found);
        }
        head = new byte[] {0, (byte) (schemaId >> 24), (byte) (schemaId >> 16), (byte) (schemaId >> 8), (byte) schemaId, 72};
        this.tenant = text(tenant);
        this.kind = text(kind);
        baseLogit = new byte[9];
        baseLogit[0] = 2; // not null
        BinaryData.encodeDouble(model.baseLogit, baseLogit, 1);
        names = join(List.of(
                text(model.name), text(model.version), text(model.sha256), text(policy.version), text(policy.sha256),
                text(topic)));
        spec = text(featureSpec);
        reasonStart = new byte[reasons.size()][];
        reasonEnd = new byte[reasons.size()][];
        for (int each = 0; each < reasons.size(); each++) {
            JsonNode texts = reasons.get(each);
            reasonStart[each] = join(List.of(text(texts.get(0).asText()), text(texts.get(1).asText())));
            reasonEnd[each] = join(List.of(text(texts.get(2).asText()), text(texts.get(3).asText())));
        }
        rules = policy.rules.stream().map(rule -> text(rule.id())).toArray(byte[][]::new);
    }

    /** Fill {@link #reason} and {@link #contribution}: the strongest first, both ways only for an approval. */
    void strongest(float[] contributions, int outcome) {
        Arrays.fill(reason, -1);
        Arrays.fill(contribution, 0.0f);
        boolean bothWays = outcome == Policy.APPROVE;
        for (int feature = 0; feature < contributions.length; feature++) {
            float value = contributions[feature];
            float weight = bothWays ? Math.abs(value) : value;
            if (!(weight > Math.abs(contribution[REASONS - 1]))) {
                continue;
            }
            int at = REASONS - 1;
            while (at > 0 && weight > Math.abs(contribution[at - 1])) {
                reason[at] = reason[at - 1];
                contribution[at] = contribution[at - 1];
                at--;
            }
            reason[at] = value > 0 ? feature : contributions.length + feature;
            contribution[at] = value;
        }
    }

    /** The record into {@link #buffer}. */
    void write(
            byte[] decisionId, Payment payment, int outcome, Model model, long firedRules, long decidedMs,
            int partition, long offset, byte[] traceparent) {
        length = 0;
        put(head);
        Ids.text(decisionId, uuid);
        put(uuid);
        put(tenant);
        put(payment.eventId);
        put(payment.accountId);
        put(kind);
        putLong(outcome);
        putDoubleOfUnion(1.0 / (1.0 + Math.exp(-(double) model.logit)));
        putDoubleOfUnion(model.probability);
        putDoubleOfUnion(model.logit);
        put(baseLogit);
        int count = 0;
        while (count < REASONS && reason[count] >= 0) {
            count++;
        }
        if (count > 0) {
            putLong(count);
            for (int each = 0; each < count; each++) {
                put(reasonStart[reason[each]]);
                putDouble(contribution[each]);
                put(reasonEnd[reason[each]]);
            }
        }
        putLong(0);
        if (firedRules != 0) {
            putLong(Long.bitCount(firedRules));
            for (long left = firedRules; left != 0; left &= left - 1) {
                put(rules[Long.numberOfTrailingZeros(left)]);
            }
        }
        putLong(0);
        putDecimal(payment.amount);
        put(payment.currency);
        put(payment.terminalId);
        putLong(payment.eventMs);
        putLong(decidedMs);
        put(names);
        putLong(partition);
        putLong(offset);
        put(spec);
        for (long timing : timings) {
            putLong(timing);
        }
        putByte(0); // not degraded
        putByte(0); // no reason for it
        if (traceparent == null) {
            putByte(0);
        } else {
            putByte(2);
            putLong(traceparent.length);
            put(traceparent);
        }
    }

    private void put(byte[] bytes) {
        put(bytes, bytes.length);
    }

    private void put(Utf8 text) {
        putLong(text.getByteLength());
        put(text.getBytes(), text.getByteLength());
    }

    private void put(byte[] bytes, int count) {
        room(count);
        System.arraycopy(bytes, 0, buffer, length, count);
        length += count;
    }

    private void putByte(int value) {
        room(1);
        buffer[length++] = (byte) value;
    }

    private void putLong(long value) {
        room(10);
        length += BinaryData.encodeLong(value, buffer, length);
    }

    private void putDouble(double value) {
        room(8);
        length += BinaryData.encodeDouble(value, buffer, length);
    }

    private void putDoubleOfUnion(double value) {
        putByte(2);
        putDouble(value);
    }

    /** The fewest big-endian two's complement bytes. */
    private void putDecimal(long value) {
        int size = 1;
        while (size < 8 && value >> 8 * size - 1 != 0 && value >> 8 * size - 1 != -1) {
            size++;
        }
        putLong(size);
        room(size);
        for (int each = size - 1; each >= 0; each--) {
            buffer[length++] = (byte) (value >> 8 * each);
        }
    }

    private void room(int count) {
        if (length + count > buffer.length) {
            buffer = Arrays.copyOf(buffer, 2 * (length + count));
        }
    }

    private static byte[] text(String value) {
        byte[] bytes = value.getBytes(StandardCharsets.UTF_8);
        byte[] out = new byte[bytes.length + 5];
        int at = BinaryData.encodeInt(bytes.length, out, 0);
        System.arraycopy(bytes, 0, out, at, bytes.length);
        return Arrays.copyOf(out, at + bytes.length);
    }

    private static byte[] join(List<byte[]> parts) {
        byte[] out = new byte[parts.stream().mapToInt(part -> part.length).sum()];
        int at = 0;
        for (byte[] part : parts) {
            System.arraycopy(part, 0, out, at, part.length);
            at += part.length;
        }
        return out;
    }
}
