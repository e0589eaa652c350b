package peer;

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
 * <p>In: length (int, big endian) and bytes of each framed payment. Out, for each: 28 features, 28
 * contributions (floats, big endian), then key, value and header, each with its length before it.
 */
public final class Check {
    private Check() {}

    /** CONFIG IN OUT. */
    public static void main(String[] arguments) throws Exception {
        Decider decider = new Decider(new ObjectMapper().readTree(new File(arguments[0])));
        Map<Utf8, byte[]> kept = new HashMap<>();
        Decider.Rows rows = new Decider.Rows() {
            @Override
            public byte[] get(byte[] account) {
                return kept.get(new Utf8(account));
            }

            @Override
            public void put(byte[] account, byte[] row) {
                kept.put(new Utf8(account), row);
            }
        };
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
                if (!decider.decide(framed, System.currentTimeMillis(), 0, offset, null, rows)) {
                    throw new IllegalArgumentException("payment " + offset + " cannot be decided");
                }
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
