"""An RTSP server of Debian's packages, run by Debian's Python: prints its two ports and whether it has an encoder for
H.264, and serves until it is ended.

    apt-get install python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good

    rtsp_server.py [PORT [FOLDER]]

/h264 and /vp8 show a test picture of 160 x 120, 20 frames a second; /sizes, in H.264, one of 160 x 120 that becomes one
of 208 x 160 for a second out of two; /clip, in H.264, the pictures 00000.png, 00001.png, ... of FOLDER, 6 a second,
again and again. The second port wants user "cam", password "p:w". PORT is the first one; 0, or none: a free one.
"""

import sys

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

SMALL, LARGE = "video/x-raw,width=160,height=120,framerate=20/1", "video/x-raw,width=208,height=160,framerate=20/1"
CHANGE_MS = 1000
PICTURE = f"videotestsrc is-live=true pattern=ball ! {SMALL} ! "
TO_H264 = "openh264enc gop-size=10 ! rtph264pay name=pay0 config-interval=-1"
VP8 = PICTURE + "vp8enc deadline=1 keyframe-max-dist=10 ! rtpvp8pay name=pay0"
SIZES = f"videotestsrc is-live=true pattern=ball ! capsfilter name=size caps={SMALL} ! {TO_H264}"
CLIP = "multifilesrc location={}/%05d.png loop=true caps=image/png,framerate=6/1 ! pngdec ! videoconvert ! " + TO_H264


def factory(launch):
    made = GstRtspServer.RTSPMediaFactory()
    made.set_launch(f"( {launch} )")
    made.set_shared(True)
    return made


def server(port="0"):
    made = GstRtspServer.RTSPServer()
    made.set_address("127.0.0.1")
    made.set_service(port)
    return made


def sizes():
    """Another size every CHANGE_MS, while somebody looks."""
    made = factory(SIZES)
    made.connect("media-configure", lambda _, media: GLib.timeout_add(CHANGE_MS, change, media.get_element(), [LARGE]))
    return made


def change(pipeline, next_size):
    element = pipeline.get_by_name("size")
    element.set_property("caps", Gst.Caps.from_string(next_size[0]))
    next_size[0] = SMALL if next_size[0] == LARGE else LARGE
    return pipeline.get_parent() is not None        # False ends the timer: nobody looks any more


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
free, guarded = server(*sys.argv[1:2]), server()
mounts = free.get_mount_points()
mounts.add_factory("/vp8", factory(VP8))
has_h264 = Gst.ElementFactory.find("openh264enc") is not None
if has_h264:
    mounts.add_factory("/h264", factory(PICTURE + TO_H264))
    mounts.add_factory("/sizes", sizes())
    for folder in sys.argv[2:3]:
        mounts.add_factory("/clip", factory(CLIP.format(folder)))
guard(guarded)
free.attach(None)
guarded.attach(None)
print(free.get_bound_port(), guarded.get_bound_port(), int(has_h264), flush=True)
GLib.MainLoop().run()
