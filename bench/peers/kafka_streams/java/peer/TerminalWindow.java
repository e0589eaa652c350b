package peer;

import java.lang.invoke.MethodHandles;
import java.lang.invoke.VarHandle;
import java.nio.ByteOrder;

/**
 * How often a terminal was paid at, in one row of bytes: hours for today, days for the windows that end a
 * label's delay ago. As weir/features/_terminal_kernels.py, without the days of known frauds.
 *
 * <pre>newest hour i32 | hour count 24 u32 | day count (delay + 31) u32</pre>
 */
final class TerminalWindow {
    private static final int HOURS = AccountWindow.HOURS;
    private static final int DAYS = AccountWindow.DAYS;
    private static final int HOUR_COUNT = 4;
    private static final int DAY_COUNT = HOUR_COUNT + 4 * HOURS;
    private static final VarHandle I32 =
            MethodHandles.byteArrayViewVarHandle(int[].class, ByteOrder.LITTLE_ENDIAN);

    private final int delayDays;
    private final int ringDays;

    TerminalWindow(int delayDays) {
        this.delayDays = delayDays;
        this.ringDays = delayDays + DAYS + 1;
    }

    /** A row for a terminal that is seen for the first time, at this hour. */
    byte[] create(long hour) {
        byte[] row = new byte[DAY_COUNT + 4 * ringDays];
        I32.set(row, 0, (int) hour);
        return row;
    }

    /** Empty the buckets between the row's newest hour and {@code hour}; nothing when that is not later. */
    void roll(byte[] row, long hour) {
        long newest = (int) I32.get(row, 0);
        if (hour <= newest) {
            return;
        }
        I32.set(row, 0, (int) hour);
        for (long ahead = newest + 1; ahead <= newest + Math.min(hour - newest, HOURS); ahead++) {
            I32.set(row, HOUR_COUNT + 4 * (int) (ahead % HOURS), 0);
        }
        long newestDay = newest / HOURS;
        long day = hour / HOURS;
        for (long ahead = newestDay + 1; ahead <= newestDay + Math.min(day - newestDay, ringDays); ahead++) {
            I32.set(row, DAY_COUNT + 4 * (int) (ahead % ringDays), 0);
        }
    }

    /** Features 23 to 26, and 30 and 31, which say never: without labels all others of fraud are 0. */
    void features(byte[] row, float[] out) {
        long hour = (int) I32.get(row, 0);
        long now = 0;
        for (int slot = 0; slot < HOURS; slot++) {
            now += (int) I32.get(row, HOUR_COUNT + 4 * slot);
        }
        out[23] = now;
        int slot = (int) ((hour / HOURS - delayDays + ringDays - 1) % ringDays);
        long count = 0;
        for (int back = 1; back <= DAYS; back++) {
            count += (int) I32.get(row, DAY_COUNT + 4 * slot);
            slot = slot > 0 ? slot - 1 : ringDays - 1;
            if (back == 1) {
                out[24] = count;
            } else if (back == 7) {
                out[25] = count;
            }
        }
        out[26] = count;
        out[30] = ringDays;
        out[31] = ringDays;
    }

    /** Let a payment enter those of its buckets that the row still holds. */
    void enter(byte[] row, long eventMs) {
        long hour = eventMs / AccountWindow.HOUR_MS;
        long day = hour / HOURS;
        long newest = (int) I32.get(row, 0);
        if (hour > newest - HOURS) {
            increment(row, HOUR_COUNT + 4 * (int) (hour % HOURS));
        }
        if (day > newest / HOURS - ringDays) {
            increment(row, DAY_COUNT + 4 * (int) (day % ringDays));
        }
    }

    private static void increment(byte[] row, int at) {
        I32.set(row, at, (int) I32.get(row, at) + 1);
    }
}
