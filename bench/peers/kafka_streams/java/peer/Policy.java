package peer;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.List;
import java.util.Map;
import org.apache.avro.util.Utf8;

/** Limits, thresholds, costs and rules of the shipped policy, applied to one payment. */
final class Policy {
    static final int APPROVE = 0;
    static final int REVIEW = 1;
    static final int DECLINE = 2;
    private static final double SCALE = 10_000.0;

    final String version;
    final String sha256;
    final List<Rule> rules = new ArrayList<>();

    private final float reviewAt;
    private final float declineAt;
    private final boolean hasCost;
    private final double lossShare;
    private final double reviewCost;
    private final double declineCost;
    private final double amountMax;
    private final boolean zeroRefused;
    private final int idBytesMax;
    private final long futureSkewMs;
    private final long ageMaxMs;
    private final Map<Utf8, Double> rates = new HashMap<>();

    /** The rules that fired for the last payment, as bits in the policy's order. */
    long fired;

    /** One rule: where all its tests hold, the outcome is at least {@code outcome}. */
    record Rule(String id, int outcome, Test[] tests) {}

    private interface Test {
        boolean holds(float[] features, Payment payment, long amountHome);
    }

    Policy(JsonNode policy, JsonNode rates) {
        version = policy.get("version").asText();
        sha256 = policy.get("sha256").asText();
        reviewAt = (float) policy.get("review_at").asDouble();
        declineAt = (float) policy.get("decline_at").asDouble();
        JsonNode cost = policy.get("cost");
        hasCost = !cost.isNull();
        lossShare = hasCost ? cost.get("fraud_loss_share").asDouble() : 0.0;
        reviewCost = hasCost ? cost.get("review").asDouble() : 0.0;
        declineCost = hasCost ? cost.get("decline").asDouble() : 0.0;
        JsonNode limits = policy.get("limits");
        amountMax = limits.get("amount_max").asDouble() * SCALE;
        zeroRefused = limits.get("zero_amount").asText().equals("refuse");
        idBytesMax = limits.get("id_bytes_max").asInt();
        futureSkewMs = limits.get("future_skew_s").asLong() * 1000;
        ageMaxMs = limits.get("event_age_max_s").isNull() ? -1 : limits.get("event_age_max_s").asLong() * 1000;
        rates.properties().forEach(rate -> this.rates.put(new Utf8(rate.getKey()), rate.getValue().asDouble()));
        for (JsonNode rule : policy.get("rules")) {
            List<Test> tests = new ArrayList<>();
            rule.get("when").forEach(condition -> tests.add(test(condition)));
            this.rules.add(new Rule(rule.get("id").asText(), rule.get("outcome").asInt(), tests.toArray(new Test[0])));
        }
    }

    /** The amount in 1/10000 of the home currency; -1 when the payment is not fit to be decided. */
    long amountHome(Payment payment, long nowMs) {
        Double rate = rates.get(payment.currency);
        if (rate == null || payment.amount < 0 || payment.amount == 0 && zeroRefused) {
            return -1;
        }
        double home = Math.rint(payment.amount * rate);
        boolean timely = payment.eventMs <= nowMs + futureSkewMs
                && payment.eventMs >= (ageMaxMs < 0 ? 0 : Math.max(0, nowMs - ageMaxMs));
        boolean named = fits(payment.eventId) && fits(payment.accountId) && fits(payment.terminalId);
        return timely && named && home <= amountMax && payment.counterpartyBytes <= idBytesMax ? (long) home : -1;
    }

    private boolean fits(Utf8 id) {
        return id.getByteLength() > 0 && id.getByteLength() <= idBytesMax;
    }

    /** The most severe of thresholds, expected cost and the rules that fire. */
    int outcome(float probability, float[] features, Payment payment, long amountHome) {
        int outcome = probability < reviewAt ? APPROVE : probability >= declineAt ? DECLINE : REVIEW;
        if (hasCost) {
            double approving = (double) probability * amountHome * (lossShare / SCALE);
            double declining = (1.0 - probability) * declineCost;
            if (declining < Math.min(approving, reviewCost)) {
                outcome = DECLINE;
            } else if (Math.min(declining, reviewCost) < approving) {
                outcome = Math.max(outcome, REVIEW);
            }
        }
        fired = 0;
        for (int index = 0; index < rules.size(); index++) {
            Rule rule = rules.get(index);
            if (holds(rule, features, payment, amountHome)) {
                fired |= 1L << index;
                outcome = Math.max(outcome, rule.outcome);
            }
        }
        return outcome;
    }

    private static boolean holds(Rule rule, float[] features, Payment payment, long amountHome) {
        for (Test test : rule.tests) {
            if (!test.holds(features, payment, amountHome)) {
                return false;
            }
        }
        return true;
    }

    private static Test test(JsonNode condition) {
        String op = condition.get("op").asText();
        JsonNode values = condition.get("values");
        double[] given = new double[values.size()];
        if (condition.has("feature")) {
            int feature = condition.get("feature").asInt();
            for (int each = 0; each < given.length; each++) {
                // Features are float32: 0.1 in the policy must equal 0.1 in a feature.
                given[each] = (float) values.get(each).asDouble();
            }
            Comparison compare = comparison(op, given);
            return (features, payment, amount) -> compare.holds(features[feature]);
        }
        return switch (condition.get("field").asText()) {
            case "amount" -> {
                for (int each = 0; each < given.length; each++) {
                    given[each] = Math.rint(values.get(each).asDouble() * SCALE);
                }
                Comparison compare = comparison(op, given);
                yield (features, payment, amount) -> compare.holds(amount);
            }
            case "channel" -> {
                long codes = 0;
                for (JsonNode value : values) {
                    codes |= 1L << value.asInt();
                }
                long allowed = codes;
                yield (features, payment, amount) -> (allowed >> payment.channel & 1) == 1;
            }
            default -> {
                List<Utf8> allowed = new ArrayList<>();
                values.forEach(value -> allowed.add(new Utf8(value.asText())));
                yield (features, payment, amount) -> allowed.contains(payment.currency);
            }
        };
    }

    private interface Comparison {
        boolean holds(double value);
    }

    private static Comparison comparison(String op, double[] given) {
        double first = given[0];
        return switch (op) {
            case "<" -> value -> value < first;
            case "<=" -> value -> value <= first;
            case ">" -> value -> value > first;
            case ">=" -> value -> value >= first;
            case "==" -> value -> value == first;
            default -> value -> {
                for (double each : given) {
                    if (value == each) {
                        return true;
                    }
                }
                return false;
            };
        };
    }
}
