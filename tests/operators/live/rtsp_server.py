"""An RTSP server of Debian's packages, run by Debian's Python: prints its two ports and whether it has an encoder for
H.264, and serves until it is ended.

    apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good

/h264 and /vp8 show a test picture of 160 x 120, 20 frames a second. The second port wants user "cam", password "p:w".
"""

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

PICTURE = "videotestsrc is-live=true pattern=ball ! video/x-raw,width=160,height=120,framerate=20/1 ! "
VP8 = PICTURE + "vp8enc deadline=1 keyframe-max-dist=10 ! rtpvp8pay name=pay0"
H264 = PICTURE + "openh264enc gop-size=10 ! rtph264pay name=pay0 config-interval=1"


def factory(launch):
    made = GstRtspServer.RTSPMediaFactory()
    made.set_launch(f"( {launch} )")
    made.set_shared(True)
    return made


def server():
    made = GstRtspServer.RTSPServer()
    made.set_address("127.0.0.1")
    made.set_service("0")
    return made


def guard(made):
    """Who knows the password may see /vp8, by digest; nobody else."""
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    auth = GstRtspServer.RTSPAuth()
    auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
    auth.add_digest("cam", "p:w", token)
    made.set_auth(auth)
    seen = factory(VP8)
    allowed = GstRtspServer.RTSPPermissions()
    allowed.add_permission_for_role("viewer", "media.factory.access", True)
    allowed.add_permission_for_role("viewer", "media.factory.construct", True)
    seen.set_permissions(allowed)
    made.get_mount_points().add_factory("/vp8", seen)


Gst.init(None)
free, guarded = server(), server()
free.get_mount_points().add_factory("/vp8", factory(VP8))
has_h264 = Gst.ElementFactory.find("openh264enc") is not None
if has_h264:
    free.get_mount_points().add_factory("/h264", factory(H264))
guard(guarded)
free.attach(None)
guarded.attach(None)
print(free.get_bound_port(), guarded.get_bound_port(), int(has_h264), flush=True)
GLib.MainLoop().run()
