/* The colour of a track: that of its mask in the picture (operators/draw.py, which says how they were picked). */

export const COLORS = [
  "#ff3c3c", "#1eff78", "#0069ff", "#2de1ff", "#ffd200", "#f000b4", "#5a782d", "#e1b4ff",
  "#e19669", "#96f0b4", "#b43c69", "#0069b4", "#a5e10f", "#ff8700", "#964bb4", "#009600",
  "#e1e178", "#a58700", "#ff0078", "#a54b00", "#009669", "#ff96a5", "#ff87ff", "#00b4ff",
  "#87a50f", "#a5f078", "#8787f0", "#00ffb4", "#ffc35a", "#00f0e1", "#b41ec3", "#ff69b4",
];

export function trackColor(id) {
  return COLORS[((id % COLORS.length) + COLORS.length) % COLORS.length];
}
