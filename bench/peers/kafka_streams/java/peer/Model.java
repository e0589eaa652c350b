package peer;

import com.fasterxml.jackson.databind.JsonNode;
import java.util.Arrays;
import java.util.TreeSet;

/**
 * The shipped additive model, evaluated natively: one binary search a feature, then look-ups in tables.
 *
 * <p>The tables are those that the ONNX graph holds as trees. Tables of one feature are added up beforehand;
 * those of a pair are reached through the cell that each feature's bin lies in.
 */
final class Model {
    static final int FEATURES = 35;

    final String name;
    final String version;
    final String sha256;
    final double baseLogit;

    /** What the last call to {@link #score} found. */
    final float[] contributions = new float[FEATURES];

    float logit;
    float probability;

    private final double a;
    private final double b;
    private final double c;
    private final float[][] edges = new float[FEATURES][];
    private final float[][] alone = new float[FEATURES][];
    private final Pair[] pairs;
    private final int[] bin = new int[FEATURES];

    /** A table over two features: the cell of each bin, and both features' shares in each cell. */
    private record Pair(int first, int second, int width, short[] rowOf, short[] columnOf, float[] shares) {}

    Model(JsonNode model) {
        name = model.get("name").asText();
        version = model.get("version").asText();
        sha256 = model.get("sha256").asText();
        baseLogit = model.get("base_logit").asDouble();
        a = model.get("calibration").get("a").asDouble();
        b = model.get("calibration").get("b").asDouble();
        c = model.get("calibration").get("c").asDouble();
        if (model.get("features").size() != FEATURES) {
            throw new IllegalArgumentException("the model has another number of features");
        }
        JsonNode tables = model.get("tables");
        for (int feature = 0; feature < FEATURES; feature++) {
            TreeSet<Float> merged = new TreeSet<>();
            for (JsonNode table : tables) {
                for (int axis = 0; axis < table.get("features").size(); axis++) {
                    if (table.get("features").get(axis).asInt() == feature) {
                        for (float edge : floats(table.get("edges").get(axis))) {
                            merged.add(edge);
                        }
                    }
                }
            }
            edges[feature] = new float[merged.size()];
            int at = 0;
            for (float edge : merged) {
                edges[feature][at++] = edge;
            }
            alone[feature] = new float[merged.size() + 1];
        }
        java.util.ArrayList<Pair> found = new java.util.ArrayList<>();
        for (JsonNode table : tables) {
            int first = table.get("features").get(0).asInt();
            short[] rowOf = cells(edges[first], floats(table.get("edges").get(0)));
            float[] shares = floats(table.get("shares").get(0));
            if (table.get("features").size() == 1) {
                for (int each = 0; each < rowOf.length; each++) {
                    alone[first][each] += shares[rowOf[each]];
                }
                continue;
            }
            int second = table.get("features").get(1).asInt();
            float[] secondEdges = floats(table.get("edges").get(1));
            float[] others = floats(table.get("shares").get(1));
            float[] both = new float[2 * shares.length];
            for (int cell = 0; cell < shares.length; cell++) {
                both[2 * cell] = shares[cell];
                both[2 * cell + 1] = others[cell];
            }
            short[] columnOf = cells(edges[second], secondEdges);
            found.add(new Pair(first, second, secondEdges.length + 1, rowOf, columnOf, both));
        }
        pairs = found.toArray(new Pair[0]);
    }

    /** Fill {@link #contributions}, {@link #logit} and {@link #probability} for one payment's features. */
    void score(float[] x) {
        for (int feature = 0; feature < FEATURES; feature++) {
            int place = below(edges[feature], x[feature]);
            bin[feature] = place;
            contributions[feature] = alone[feature][place];
        }
        for (Pair pair : pairs) {
            int row = pair.rowOf[bin[pair.first]];
            int cell = 2 * (row * pair.width + pair.columnOf[bin[pair.second]]);
            contributions[pair.first] += pair.shares[cell];
            contributions[pair.second] += pair.shares[cell + 1];
        }
        double total = baseLogit;
        for (float each : contributions) {
            total += each;
        }
        logit = (float) total;
        double argument = -a * softplus(-logit) + b * softplus(logit) + c;
        probability = (float) (1.0 / (1.0 + Math.exp(-argument)));
    }

    private static double softplus(double x) {
        return x > 0 ? x + Math.log1p(Math.exp(-x)) : Math.log1p(Math.exp(x));
    }

    /** How many edges lie below {@code x}. */
    private static int below(float[] edges, float x) {
        int low = 0;
        int high = edges.length;
        while (low < high) {
            int middle = (low + high) >>> 1;
            if (edges[middle] < x) {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        return low;
    }

    /** The cell of a table's axis that each bin of the feature's merged edges lies in. */
    private static short[] cells(float[] merged, float[] axis) {
        short[] cell = new short[merged.length + 1];
        for (int each = 0; each < merged.length; each++) {
            cell[each] = (short) below(axis, merged[each]);
        }
        cell[merged.length] = (short) axis.length;
        return cell;
    }

    private static float[] floats(JsonNode numbers) {
        float[] found = new float[numbers.size()];
        for (int each = 0; each < found.length; each++) {
            found[each] = (float) numbers.get(each).asDouble();
        }
        return found;
    }

    @Override
    public String toString() {
        return name + " " + version + ": " + pairs.length + " pairs, " + Arrays.stream(edges).mapToInt(e -> e.length).sum() + " edges";
    }
}
