"""Short word lists for tagging English without a model. They are our own, each in alphabetical
order; a word that is used in several ways is in the list of the one to take when its neighbours do
not decide."""

# what gets no priority however it is used: determiners, pronouns, prepositions, conjunctions,
# modals, particles, question words, interjections (Penn DT PRP IN CC MD RP W* UH)
FUNCTION = frozenset(
    """
    & ' 'd 'em 'll 'm 're 's 've a aboard about above across after against ah alas all along
    although amid amidst among amongst an and another any around as at bc because before behind
    below beneath beside besides between beyond both but by bye ca can cannot concerning cos could
    coz cuz despite down during e.g. each eg either etc. every except for from gon goodbye ha haha
    he hello her hers herself hey hi him himself his hmm how i i.e. ie if in inside into it its
    itself lest like lol may me might mine must my myself near neither no nope nor of off oh ok
    okay on onto or ought our ours ourselves out outside over past per please plus shall she
    should since some ta than that the thee their theirs them themselves there these they this
    those thou though through throughout thy till to toward towards u uh um under underneath
    unless unlike until up upon ur us v. versus via vs vs. w/ w/o we what whatever when whenever
    where whereas wherever whether which whichever while who whoever whom whose why will with
    within without wo would wow ya yeah yep yes you your yours yourself yourselves
    """.split()
)

# the verbs among spaCy's English stop words: priority 7
STOP_VERBS = frozenset(
    """
    'm 're 's 've am are be became become becomes becoming been being call did do does doing done
    get give go had has have is keep made make move name put regarding say see seem seemed seeming
    seems show take used using was were
    """.split()
)

# neighbours that decide
DETERMINERS = frozenset(
    """
    's a an another any each either every her his its my neither no our some that the their these
    this those whose your
    """.split()
)
SUBJECTS = frozenset(
    """
    he i it she there they u we who you
    """.split()
)
MODALS = frozenset(
    """
    'd 'll ca can cannot could did do does may might must n't not please shall should to will wo
    would
    """.split()
)
PREPOSITIONS = frozenset(
    """
    about above across after against along among around as at before behind below between beyond
    by despite during for from in inside into like near of off on onto outside over per since than
    through under until upon via with within without
    """.split()
)
OBJECTS = frozenset(
    """
    him it me them us
    """.split()
)

# adverbs; most of those in -ly need no list
ADVERBS = frozenset(
    """
    abroad absolutely actually afterward afterwards again ago ahead almost alone aloud already
    alright also altogether always anymore anyway anyways anywhere apart apparently approximately
    asap aside away back backward basically certainly clearly completely currently definitely
    directly downstairs downtown else elsewhere especially even eventually ever everywhere exactly
    extremely far finally forever forward fully furthermore generally halfway hence here hereby
    highly hopefully however immediately indeed indoors instead just kinda later least less
    likewise literally longer maybe meanwhile more moreover most mostly much n't nearly never
    nevertheless nonetheless not now nowadays nowhere often once online only otherwise outdoors
    overnight overseas particularly perhaps possibly pretty previously prior probably quickly
    quite rarely rather really recently right seldom simply slowly so somehow sometimes somewhat
    somewhere soon sooner sorta still straight then thereafter thereby therefore therein tho thru
    thus today's together too totally truly twice twofold typically ultimately unfortunately
    upstairs usually very virtually well whatsoever widely worldwide yet
    """.split()
)

# ends in -ly and is no adverb
LY = {
    **dict.fromkeys(
        """
        beastly bodily brotherly bubbly chilly costly cowardly curly daily deadly early
        elderly fatherly friendly ghastly heavenly hilly holy homely leisurely likely lively
        lonely lovely monthly motherly orderly quarterly scholarly silly smelly timely ugly
        unfriendly unlikely untimely weekly woolly worldly wrinkly yearly
        """.split(),
        "JJ",
    ),
    **dict.fromkeys(
        """
        anomaly assembly belly bully butterfly dolly family fly folly homily italy jelly
        july lily melancholy monopoly rally reply supply tally
        """.split(),
        "NN",
    ),
    **dict.fromkeys(
        """
        ally apply comply imply multiply rely
        """.split(),
        "VB",
    ),
}

# adjectives, those of nations among them
ADJECTIVES = frozenset(
    """
    1st 2nd 3rd able absent absolute abstract acceptable active actual acute additional adequate
    adult advanced afghan afraid african aged alarming alien alike alive amazing american angry
    annoying arab arabic armed ashamed asian asleep australian awake aware awful bad bare basic
    beautiful best better big bigger biggest bitter black bland blank blind blonde blue bold bored
    boring brave brazilian brief bright brilliant broad broken brown bulky busy californian calm
    canadian capable careful caring catholic central certain challenging charming cheap cheaper
    cheapest chinese classy clean clear clever close cloudy cold colder comfy common complete
    complex complicated concerned concrete confident confused confusing conscious consistent
    constant content convenient convincing cool correct cosy cozy crazy creamy crispy crowded
    crucial crude crunchy cuban curious current cute damp danish dark dead deaf dear decent
    dedicated deep deeper delicate dense detailed different difficult dirty disabled disappointed
    disappointing disgusting distant distinct double dry due dull dumb dusty dutch eager easier
    easiest east eastern easy educated effective egyptian eighth eligible elite embarrassed
    embarrassing empty encouraging english enough entire equal essential european evident evil
    exact excellent excited exciting exclusive exhausted existing expensive experienced expert
    explicit extra extreme fair fake false famous fancy fascinating fast faster fat fellow few
    fewer fierce fifth final fine finnish firm first fit flat foggy foreign formal former fourth
    frank free french frequent fresh friendlier frustrated frustrating full funny further future
    fuzzy generous gentle genuine german giant glad global good grand grateful gray greasy great
    greater greatest greedy greek green grey gross guilty hairy handsome handy happier happy hard
    harder harsh hasty hawaiian healthy heavier heavy hidden high higher highest hollow honest hot
    huge human humble hungry ideal idle ill immediate immense important incoming incorrect
    independent indian indirect inner innocent innovative instant intelligent intense interested
    interesting internal invalid involved iranian iraqi irish islamic israeli italian japanese
    jewish joint juicy junior keen key korean large larger largest last late latest latin lazy
    leading lebanese legal lesser liable light likely limited little live local lone long loose
    loud low lower lowest loyal lucky mad main major many married massive mature mean medium
    mental mere messy mexican mild minimal minor missing mixed modern modest moral muslim mutual
    naked narrow nasty natural nearby neat necessary negative neighboring nervous net neutral new
    newer newest next nice nicer nicest ninth noisy normal north northeast northern northwest
    nuclear numb obvious odd old older oldest ongoing open opposite ordinary organic organized
    other outdated outer outgoing outstanding overall overwhelming own pakistani pale palestinian
    patient perfect permanent phony picky plain pleasant pleased polite political poor popular
    portuguese positive possible pregnant present pressing pricey prime private probable profound
    promising prompt proper protestant proud pure qualified quick quiet rainy random rapid rare
    raw ready real recent regular related relaxed relaxing relevant remote renowned retired rich
    richer ridiculous ripe risky roman rotten rough round rude rural russian rusty sad safe safer
    salty same satisfied saudi scared scary scottish second secondary secret secure senior
    sensitive separate serious seventh several severe sexual shallow sharp sheer shiite shiny
    short shorter shy sick significant silent silver similar simple simpler simplest sincere sixth
    skilled sleepy slight slim sloppy slow slower small smaller smallest smart smooth snowy sober
    social soft sole solid sophisticated sore sorry sour south southeast southern southwest soviet
    spanish spare special specific spectacular spicy stable standard sticky stiff stormy strange
    strict strong stronger strongest stunning stupid subject subtle such sudden sufficient
    suitable sunni sunny super superb superior sure surprising swedish sweet swift swiss syrian
    talented tall taller tasty tenth terrible terrific terrifying texan thick thin third tight
    tiny tired top touching tough tougher toxic trendy tricky true turkish twentieth ugly unable
    unaware unclear underlying undisclosed unemployed unexpected unfair unique united unknown
    unlimited unnamed unprecedented unrelated untouched unusual unwanted unwilling upcoming upper
    upset urban urgent useful usual vague vain valid various vast vietnamese vital vivid warm weak
    weaker wealthy weird welcoming welsh western wet white whole wicked wide wider wild willing
    windy wise wonderful worried worse worst worth worthwhile worthy wrong yellow young younger
    youngest yummy zero
    """.split()
)

# nouns whose ending is that of something else, and the most common ones
NOUNS = frozenset(
    """
    % access accounting address advertising age air alternative amount angle animal anniversary
    anybody anyone anything appeal apple approval archive area arithmetic arrest arrival art
    article athletic attic attorney banking battle bed bedding beginning bible bit body bonus book
    boss bottle boundary boy breakfast breed british building bundle burglary bus business cable
    cactus camping campus canary candle capital car carnival case cast castle cat cathedral
    ceiling census chemical chest child children chorus christian circle circus city civilian
    class clinic clothing coast comic commentary community company computer conquest consensus
    contest coral cost country couple criminal critic crystal cycle day deal deed dentist
    detective diary dictionary dining dish dive doctor documentary dog door drawing dress drive
    dust education electrician email end engineering epidemic ethic evening everybody everyone
    everything example executive eye fabric face fact father february feed feeling festival file
    filling finish fish fishing focus food foot force forest friend funding game genius girl glass
    glossary goal government graphic grass greed group guardian guest guy hand handle harvest
    health hearing heating hiking historian history hive holding home hospital host hotel hour
    house housing hundred idea incentive individual information initiative interest internet
    itinerary january job journal kid kids kind king law level librarian library life lighting
    lightning line list listing locative logic loss lot lots magic magician man manual
    manufacturing marketing material meal mechanic medal meeting member men mess metal middle
    military minute missile missionary mobile moment money month morning mother motive muscle
    music musical musician name narrative native need needle nest news night nobody none noodle
    nothing number nursing objective office official olive opening original others page painting
    panic parent parish parking part party pass pedestrian people percent person perspective phone
    physician pickle picnic piercing place planning point policy polish politician post potential
    power president price pricing principle problem process processing professional profile
    proposal protest public puzzle radish reason red reed referral refusal regards relative
    removal renewal rental representative republic request research rest restaurant result
    rhetoric riddle ring rival road room royal rubbish salary sample scandal sceptic school
    secretary seed service setting shed shipping shop shopping sibling side signal single site
    sled software somebody someone something sort speed spelling spending spring staff staple
    state statistic status stocking store street string success summary surroundings survival
    swelling swimming table tactic teacher teaching team technician temple terminal test thanks
    thing time title today tomorrow tonight topic total trading traffic training trial tribunal
    trouble trust type uncle understanding variable vegetable vehicle veterinarian virus war
    warning water way web wedding weed week weekend west wing withdrawal woman women word wording
    world writing year yesterday
    """.split()
)

# base forms of verbs that are seldom nouns
VERBS = frozenset(
    """
    accept accomplish achieve acquire adapt add adjust admire admit adopt afford agree allow
    analyze announce apologize appear apply appoint appreciate approve argue arise arrange arrive
    ask assemble assess assign assist assume assure attach attend attract avoid bake be beat
    become beg begin behave believe belong bend betray bind bite bleed bless blow borrow bother
    bring broadcast build burn bury buy calculate carry catch cease celebrate choose cite clarify
    climb collapse collect combine come communicate compare compete compile complain comprise
    compute concentrate conclude confess confirm confuse connect consider consist construct
    consult consume contact contain continue contribute convert convey convict convince cook
    cooperate cope create criticize damage decide declare decline decorate dedicate defeat defend
    define delay delete deliver demonstrate deny depart depend derive describe deserve destroy
    detect determine develop die differ dig diminish disagree disappear discover discuss dislike
    dismiss distinguish distribute disturb divide download drag draw dream drink drop earn eat
    edit educate elect eliminate embrace emerge emphasize employ enable encounter encourage
    enhance enjoy enroll ensure enter entertain establish evaluate evolve examine exceed exclude
    execute exist expand expect explain explode explore expose express extend fail fall feel fill
    find fix flee float flow fly fold follow forbid forget forgive form freeze fulfill gain gather
    generate get give go google grab graduate grant grow guarantee guess hang happen hate hear
    hesitate hide hire hit hold identify ignore illustrate imagine implement imply import impose
    impress improve include incorporate increase indicate inform inherit initiate inject injure
    insert insist inspire install insure integrate intend interact interpret introduce invade
    invent invest investigate invite involve isolate join judge justify keep kick kill kiss kneel
    knock know lack lay lead lean learn leave lend let lie lift listen locate lose love maintain
    make manage manufacture marry meet melt mention merge mind modify motivate mount multiply
    neglect negotiate obey obtain occupy occur offend offer operate oppose organize originate
    overcome owe participate pay perceive perform permit persuade pick plead possess postpone pour
    pray predict prefer prepare preserve press pretend prevent proceed produce prohibit promote
    propose protect prove provide publish pull punish purchase pursue push put raise react read
    realize recall receive recognize recommend recover recruit reduce refer reflect refund refuse
    regard regret reject relate relax release rely remain remember remind remove repeat replace
    reply represent require rescue resemble reserve resign resist resolve respect respond restore
    restrict retain retire retrieve reveal ride rise rob roll ruin rule run sacrifice satisfy save
    say scare scream see seek seem select sell send serve settle shake shine shoot shout shrink
    sing sink sit sleep slip solve speak specify spell spend spill spoil spread squeeze stand
    stare stay steal stick stir strengthen strike strive struggle submit succeed sue suffer
    suggest summarize supervise suppose surrender survive suspect sustain swear sweep swim swing
    take teach tear tell tend thank think threaten throw tie tolerate translate treat try turn
    undergo understand undertake unite update upgrade upload urge use utilize vanish vary verify
    wait wake walk wander want warn wash watch wear weigh win wipe wish wonder worry wrap write
    yell yield
    """.split()
)

# verbs as well as nouns: the neighbours decide, and a noun where they do not
EITHER = frozenset(
    """
    abuse account act advance advertise advice aim answer approach attack attempt balance ban bank
    base bear bill block board bomb bottom break brush call camp cancel care cause challenge
    change charge chat check claim code comment commit compromise concern conduct conflict
    contract control copy count cover crack crash cross cry cure curse cut dance date debate
    demand deposit design desire detail direct document doubt draft effect estimate exchange
    excuse exercise experience experiment export favor fear feature fight figure film finance fire
    flash frame fuel function fund glance grade guard guide harm head heat help highlight hope
    hunt impact influence input insult interview issue joke jump label land laugh launch license
    limit link load lock look mark market mass master match matter measure model monitor move note
    notice object order outline pack paint park pause photograph plan plant play plot poison
    position practice praise print profit program progress project promise question quote race
    rain range rank rate reach rebel record report return review reward risk rock sail scale
    schedule score search sense shape share shift ship shock show sign slice smell smile smoke
    sound source space spot stage stamp star start step stock stop stream stress stretch strip
    study style supply support surprise survey switch talk target taste tax text tip touch tour
    track trade train transfer transport trap travel trick trip value view visit voice volunteer
    vote waste wave work
    """.split()
)

# forms of verbs that have no regular ending
IRREGULAR = frozenset(
    """
    ) .split() am are arisen arose ate awoke beaten became been began begun being bent bitten bled
    blew blown bore born borne bought bound bred broke brought built burnt came cant caught chose
    chosen clung crept dealt did didnt does doesnt doin done dont drank drawn dreamt drew driven
    drove drunk dug eaten fallen fed fell felt fled flew flown flung forbade forbidden forgave
    forgiven forgot forgotten fought found froze frozen gave gettin given goin gone got gotten
    grew grown had has having heard held hid hung hurt is isnt kept knelt knew known laid lain
    learnt led lent lit lookin lost made meant met mistaken misunderstood mown overcame overtook
    paid proven quit ran rang rid ridden risen rode rose rung said sang sat saw seen sent sewn
    shaken shone shook shot shown shrank shrunk shut slain slept slid slit sold sought spelt spent
    spilt split spoke spoken sprang sprung spun stole stolen stood struck strung stuck stung stunk
    sung sunk swam swept swore sworn swum swung taken taught thought threw thrown told took tore
    torn understood undertaken undertook wan was wasnt went wept were withdrawn withdrew woke
    woken won wont wore worn wound wove woven written wrote
    """.split()
)

# what stands before a name and is a part of it
TITLES = frozenset(
    """
    capt. col. dr dr. gen. gov. lt. mr mr. mrs mrs. ms ms. prof. rep. rev. sen. sgt.
    """.split()
)

# days and months
DATES = frozenset(
    """
    apr april aug august dec december feb february fri friday jan january jul july jun june mon
    monday nov november oct october saturday sep sept september sunday thu thurs thursday tue tues
    tuesday wed wednesday
    """.split()
)

# common nouns in capitals
ACRONYMS = frozenset(
    """
    AC AM API ATM CD CDs CFO CPU DJ DNA DVD DVDs FAQ GPA GPS GPU HR HTML ID IDs IQ IT JSON LCD
    LED MBA MD PC PCs PDF PM PR PS PhD RAM ROM RV SQL SUV TV USB VP XML
    """.split()
)

# numbers in letters
NUMBERS = frozenset(
    """
    billion eight eighteen eighty eleven fifteen fifty five forty four fourteen hundred million
    nine nineteen ninety one seven seventeen seventy six sixteen sixty ten thirteen thirty
    thousand three trillion twelve twenty two
    """.split()
)
