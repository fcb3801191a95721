// Run once when the page is there.
() => {
    // Whether the browser plays a video, which it does once it has a first picture to show; given on with the video.
    window.canPlay = async (video) => [video, !video || await new Promise((done) => {
        const player = document.createElement("video");
        player.onloadeddata = () => done(player.videoWidth > 0);
        player.onerror = () => done(false);
        setTimeout(() => done(false), 8000);
        player.muted = true;
        player.preload = "auto";
        player.src = video.url;
    })];

    // gradio's own notice that a video is not playable: the page makes a preview of it.
    new MutationObserver(() => {
        for (const notice of document.querySelectorAll(".toast-body")) {
            if (notice.textContent.includes("Video not playable")) notice.querySelector("button.toast-close")?.click();
        }
    }).observe(document.body, {childList: true, subtree: true});

    // Scores count seconds from the first picture, which a browser may show at another time than 0.
    document.addEventListener("loadeddata", (event) => { event.target.zero = event.target.currentTime; }, true);

    // What is clicked in the scores over time is played, in the preview if there is one.
    document.addEventListener("click", (event) => {
        const at = event.target.closest("[data-from], [data-begin]");
        const player = document.querySelector("#preview video") || document.querySelector("#video video");
        if (!at || !player) return;
        const box = at.getBoundingClientRect(), share = (event.clientX - box.left) / box.width;
        const {from, to, begin, end} = at.dataset, zero = player.zero || 0;
        const first = from === undefined ? +begin + share * (end - begin) : +from, last = zero + +(to ?? end);
        player.ontimeupdate = () => {
            if (player.currentTime < last || player.seeking) return;
            player.pause();
            player.ontimeupdate = null;
        };
        player.currentTime = zero + first;
        player.play();
        player.scrollIntoView({block: "nearest", behavior: "smooth"});
    });
}
