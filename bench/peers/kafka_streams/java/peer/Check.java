package peer;

import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.BufferedInputStream;
import java.io.BufferedOutputStream;
import java.io.DataInputStream;
import java.io.DataOutputStream;
import java.io.EOFException;
import java.io.File;
import java.io.FileInputStream;
import java.io.FileOutputStream;
import java.util.HashMap;
import java.util.Map;
import org.apache.avro.util.Utf8;

/**
 * The decisions on payments from a file, without Kafka, so that the bench can hold them against Weir's own.
 *
 * <p>In: length (int, big endian) and bytes of each framed payment. Out, for each: 35 features, 35
 * contributions (floats, big endian), then key, value and header, each with its length before it.
 */
public final class Check {
    private Check() {}

    private static final class Kept implements Decider.Rows {
        private final Map<Utf8, byte[]> rows = new HashMap<>();

        @Override
        public byte[] get(byte[] id) {
            return rows.get(new Utf8(id));
        }

        @Override
        public void put(byte[] id, byte[] row) {
            rows.put(new Utf8(id), row);
        }
    }

    /** CONFIG IN OUT. */
    public static void main(String[] arguments) throws Exception {
        JsonNode config = new ObjectMapper().readTree(new File(arguments[0]));
        Decider decider = new Decider(config);
        boolean withTerminals = config.get("terminals").asBoolean();
        Decider.Rows accounts = new Kept();
        Decider.Rows terminals = new Kept();
        try (DataInputStream in = new DataInputStream(new BufferedInputStream(new FileInputStream(arguments[1])));
                DataOutputStream out =
                        new DataOutputStream(new BufferedOutputStream(new FileOutputStream(arguments[2])))) {
            for (long offset = 0; ; offset++) {
                byte[] framed;
                try {
                    framed = new byte[in.readInt()];
                } catch (EOFException end) {
                    break;
                }
                in.readFully(framed);
                if (!decider.accept(framed)) {
                    throw new IllegalArgumentException("payment " + offset + " cannot be decided");
                }
                decider.observeAccount(accounts);
                if (withTerminals) {
                    decider.observeTerminal(terminals);
                }
                decider.finish(System.currentTimeMillis(), 0, offset, null);
                for (float each : decider.features) {
                    out.writeFloat(each);
                }
                for (float each : decider.model.contributions) {
                    out.writeFloat(each);
                }
                for (byte[] part : new byte[][] {decider.key, decider.value, decider.header}) {
                    out.writeInt(part.length);
                    out.write(part);
                }
            }
        }
    }
}
